#!/usr/bin/env bash

#BSUB -J dask-worker
#BSUB -e lsf-logs/worker-0-%J.err
#BSUB -o lsf-logs/worker-0-%J.out
#BSUB -q normal
#BSUB -n 1
#BSUB -M 4295
#BSUB -W 4:00

python -m distributed.cli.dask_worker tcp://10.1.2.3:40000 --name worker-0 --nthreads 1 --memory-limit 4.00GiB --nanny --death-timeout 60 --local-directory /tmp --lifetime 13500s --lifetime-stagger 300s

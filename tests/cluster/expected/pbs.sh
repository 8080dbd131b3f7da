#!/usr/bin/env bash

#PBS -N dask-worker
#PBS -q normal
#PBS -l select=1:ncpus=1:mem=4096MB
#PBS -l walltime=04:00:00
#PBS -e pbs-logs/
#PBS -o pbs-logs/

python -m distributed.cli.dask_worker tcp://10.1.2.3:40000 --name worker-0 --nthreads 1 --memory-limit 4.00GiB --nanny --death-timeout 60 --local-directory /tmp --lifetime 13500s --lifetime-stagger 300s

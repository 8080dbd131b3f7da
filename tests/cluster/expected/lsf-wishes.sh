#!/usr/bin/env bash

#BSUB -J dask-worker
#BSUB -e lsf-logs/worker-0-%J.err
#BSUB -o lsf-logs/worker-0-%J.out
#BSUB -q normal
#BSUB -n 8
#BSUB -R "span[hosts=1]"
#BSUB -M 8590
#BSUB -W 4:00
export OMP_NUM_THREADS=1
export GREETING='it'"'"'s $HOME'
source activate
python -m distributed.cli.dask_worker tcp://10.1.2.3:40000 --name worker-0 --nthreads 4 --memory-limit 4.00GiB --nworkers 2 --nanny --death-timeout 60 --local-directory /tmp --preload my_module --preload /shared/start.py --lifetime 13500s --lifetime-stagger 300s

#!/usr/bin/env bash

#PBS -N dask-worker
#PBS -q normal
#PBS -l select=1:ncpus=8:mem=8192MB
#PBS -l walltime=04:00:00
#PBS -e pbs-logs/
#PBS -o pbs-logs/
export OMP_NUM_THREADS=1
export GREETING='it'"'"'s $HOME'
source activate
python -m distributed.cli.dask_worker tcp://10.1.2.3:40000 --name worker-0 --nthreads 4 --memory-limit 4.00GiB --nworkers 2 --nanny --death-timeout 60 --local-directory /tmp --preload my_module --preload /shared/start.py --lifetime 13500s --lifetime-stagger 300s

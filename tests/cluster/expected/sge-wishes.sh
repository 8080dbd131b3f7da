#!/usr/bin/env bash

#$ -N dask-worker
#$ -q all.q
#$ -l mem_free=4G
#$ -l h_rt=04:00:00
#$ -e sge-logs/
#$ -o sge-logs/
#$ -cwd
#$ -j y
export OMP_NUM_THREADS=1
export GREETING='it'"'"'s $HOME'
source activate
python -m distributed.cli.dask_worker tcp://10.1.2.3:40000 --name worker-0 --nthreads 4 --memory-limit 4.00GiB --nworkers 2 --nanny --death-timeout 60 --local-directory /tmp --preload my_module --preload /shared/start.py --lifetime 13500s --lifetime-stagger 300s

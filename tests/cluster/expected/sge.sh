#!/usr/bin/env bash

#$ -N dask-worker
#$ -q all.q
#$ -l mem_free=4G
#$ -l h_rt=04:00:00
#$ -e sge-logs/
#$ -o sge-logs/
#$ -cwd
#$ -j y

python -m distributed.cli.dask_worker tcp://10.1.2.3:40000 --name worker-0 --nthreads 1 --memory-limit 4.00GiB --nanny --death-timeout 60 --local-directory /tmp --lifetime 13500s --lifetime-stagger 300s

#!/usr/bin/env bash

#SBATCH -J dask-worker
#SBATCH -e slurm-logs/dask-worker-%J.err
#SBATCH -o slurm-logs/dask-worker-%J.out
#SBATCH -p normal
#SBATCH -n 1
#SBATCH --cpus-per-task=1
#SBATCH --mem=4G
#SBATCH -t 04:00:00

python -m distributed.cli.dask_worker tcp://10.1.2.3:40000 --name worker-0 --nthreads 1 --memory-limit 4.00GiB --nanny --death-timeout 60 --local-directory /tmp --lifetime 13500s --lifetime-stagger 300s

#!/usr/bin/env bash

#SBATCH -J dask-worker
#SBATCH -e slurm-logs/dask-worker-%J.err
#SBATCH -o slurm-logs/dask-worker-%J.out
#SBATCH -p normal
#SBATCH -n 1
#SBATCH --cpus-per-task=8
#SBATCH --mem=8G
#SBATCH -t 04:00:00
export OMP_NUM_THREADS=1
export GREETING='it'"'"'s $HOME'
source activate
python -m distributed.cli.dask_worker tcp://10.1.2.3:40000 --name worker-0 --nthreads 4 --memory-limit 4.00GiB --nworkers 2 --nanny --death-timeout 60 --local-directory /tmp --preload my_module --preload /shared/start.py --lifetime 13500s --lifetime-stagger 300s

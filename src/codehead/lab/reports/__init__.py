"""Reports: tables and pictures, rendered from result files and from nothing else."""

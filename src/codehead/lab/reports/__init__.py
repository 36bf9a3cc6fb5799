"""Reports: tables and pictures, rendered from result files alone."""

"""The method behind four papers on robust and non-robust features."""

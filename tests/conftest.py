import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # tensors here are too small to share among threads

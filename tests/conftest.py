"""Tests run on two threads at most, so that results and times do not depend on the size of the machine."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")
os.environ.setdefault("HF_HUB_OFFLINE", "1")         # no test may reach the network

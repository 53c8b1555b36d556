"""The local engine: trains and samples any transformers causal model on this machine's processor or GPU."""

import os

from crucible_train.adapters.torch_local.memory import share_one_heap

# No two streams are equally long, and each new shape of a bfloat16 product is compiled (20 ms a pass) and kept by two
# caches, oneDNN's and that of torch above it: 9 MiB a pass, up to 1,024 products. A pass needs about 30 of them.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "32")
os.environ.setdefault("LRU_CACHE_CAPACITY", "32")
# How long a thread spins for the others before it sleeps. By default some 10 ms, which stops everything where another
# process wants the core; the work between two products is far shorter.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

share_one_heap()

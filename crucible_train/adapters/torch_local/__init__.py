"""The local engine: trains and samples any transformers causal model on this machine's processor or GPU."""

import os

# oneDNN compiles code for every new shape of a product and keeps 1,024 of them, some 0.6 MB each. No two streams are
# equally long, so most are never used again; one pass needs about 30, and compiling them takes it 20 ms.
os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")

"""The sampling port over an OpenAI-compatible server: vLLM, SGLang, llama.cpp, ``transformers serve``."""

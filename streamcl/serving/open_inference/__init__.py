"""The Open Inference Protocol (version 2), as clients of Triton and KServe speak it."""

"""Places to compute: the interface that the pipeline is written against, and CUDA, CPU and emulated devices."""

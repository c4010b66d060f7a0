"""What all Triton kernels share: how one is declared and launched, counters of arrivals, and compilation ahead."""

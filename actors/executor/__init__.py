"""The executor: runs the scheduler's plans on a device, with transfers and compute overlapped."""

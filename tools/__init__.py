"""For people around the package: demo, accuracy, benchmarks, an emulated cluster."""

"""Measurements of Homeport beside what people would otherwise run: `python -m benchmarks NAME`, see README.md."""

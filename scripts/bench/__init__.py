"""Modules that the benchmark scripts share: counting, peaks, clocks, inputs, the released loop, plots."""

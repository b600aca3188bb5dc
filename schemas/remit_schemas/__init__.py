"""What crosses a boundary of Remit, and the pure rules that both sides of it need.

Nothing in this package does I/O, reads a clock or draws a random number: values in, values out.
"""

"""The tests: pure units, and black-box tests of the running service over real sockets."""

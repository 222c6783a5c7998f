"""The same work in other libraries, each in a process of its own."""

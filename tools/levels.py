"""Print the levels of kernels below this machine's own, highest first, for `make test`."""

from distsage.kernels.level import Level, of_processor

if __name__ == "__main__":
    for level in reversed(Level):
        if level < of_processor():
            print(level)

"""The league: published measurements that a simulator of expert offloading should predict, and what this one says."""

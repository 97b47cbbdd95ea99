"""Arrays in, client shards out: data sets, partitions, the transfer set."""

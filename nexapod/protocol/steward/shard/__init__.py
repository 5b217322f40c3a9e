"""One seat of one shard: leases, evidence, judgements."""

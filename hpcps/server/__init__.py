"""The parameter server: shards of the parameters that add up gradients, update themselves and answer."""

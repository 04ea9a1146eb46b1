"""The real core in a simulated world: brokers, a group of workers and an endpoint from one seed."""

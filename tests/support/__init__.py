"""What tests of several kinds share: waiting, Kafka from outside, and the ingester's processes."""

"""The shells around Kafka: nothing else knows its client."""

"""What anybody can see of a group from outside, in Kafka and at PacSpace; changes nothing."""

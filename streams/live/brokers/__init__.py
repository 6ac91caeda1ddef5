"""Readers of message brokers: Kafka, Redis Streams and MQTT, and the forms of their messages."""

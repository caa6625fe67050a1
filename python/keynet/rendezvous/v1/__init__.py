"""The rendezvous service, version 1: generated from rendezvous.proto (`make proto`)."""

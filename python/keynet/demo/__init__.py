"""`keynet demo`: a plain gRPC server and client, and the two keynet nodes between them."""

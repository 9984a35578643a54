"""A client that speaks TLS, and that an end without TLS's own makes fail.

Connects to HOST:PORT, trusting the certificate in a file, and sends a text. Prints `connected`, then each
line that comes, then `the end`.
"""

import socket
import ssl
import sys

address, certificate, text = sys.argv[1:]
host, port = address.rsplit(":", 1)
context = ssl.create_default_context(cafile=certificate)
plain = socket.create_connection((host, int(port)), timeout=20)
secure = context.wrap_socket(plain, server_hostname="localhost", suppress_ragged_eofs=False)
secure.sendall(text.encode().decode("unicode_escape").encode())
print("connected", secure.version(), flush=True)
rest = b""
while data := secure.recv(4096):
    *lines, rest = (rest + data).split(b"\n")
    for line in lines:
        print(line.decode(), flush=True)
print("the end", flush=True)

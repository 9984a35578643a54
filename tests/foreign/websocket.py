"""Sends so many messages, and reads answers until the server says goodbye.

usage: websocket.py URL MESSAGES
"""

import sys

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

url, messages = sys.argv[1], int(sys.argv[2])
with connect(url) as server:
    for number in range(messages):
        server.send(f"message {number}")
    print("sent", flush=True)
    answers = 0
    try:
        while True:
            answer = server.recv(timeout=30)
            assert answer == f"message {answers}", answer
            answers += 1
    except ConnectionClosed as closed:
        print(answers, "answers")
        print(closed.rcvd.code, closed.rcvd.reason)

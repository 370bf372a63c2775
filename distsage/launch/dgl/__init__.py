"""DGL's distributed runtime, as this project uses it. Runs on server and trainer ranks.

In comes a `DGLJob`; out comes a server that serves its part (`server`), or a trainer's view of all
parts (`client`). Nothing outside this package and the readers and writers of DGL's files imports
DGL, so that replacing it is the work of these files. What crosses the network does not need DGL:
`handshake` says who is listened to, `frames` what is believed, `transport` who sends when.
"""

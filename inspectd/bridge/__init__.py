"""PLC bridges: the verdict stream as Modbus registers and as OPC UA variables, each in a process of its own.

Both show one thing, `LineImage`: what may be acted on at this moment, which is nothing unless everything is well.
"""

"""A Modbus slave by python3-pymodbus 3.0 whose registers name their address.

usage: slave.py rtu DEVICE BAUD | tcp PORT | rtutcp PORT

Units 1, 2 and 3. Register a of unit u holds (7 a + 256 u + f) modulo 65536,
where f is the function that reads it, 3 or 4.
"""
import asyncio
import sys

from pymodbus.datastore import ModbusSequentialDataBlock, ModbusServerContext, ModbusSlaveContext
from pymodbus.server import StartAsyncSerialServer, StartAsyncTcpServer
from pymodbus.transaction import ModbusRtuFramer, ModbusSocketFramer


def table(unit, function):
    return ModbusSequentialDataBlock(0, [(7 * a + 256 * unit + function) % 65536 for a in range(65536)])


context = ModbusServerContext(
    slaves={u: ModbusSlaveContext(hr=table(u, 3), ir=table(u, 4), zero_mode=True) for u in (1, 2, 3)},
    single=False,
)


async def main(kind, where, baud="0"):
    if kind == "rtu":
        server = await StartAsyncSerialServer(
            context, framer=ModbusRtuFramer, port=where, baudrate=int(baud), ignore_missing_slaves=True, defer_start=True
        )
        await server.start()
        print("ready", flush=True)
        await server.serve_forever()
        return
    server = await StartAsyncTcpServer(
        context,
        framer=ModbusSocketFramer if kind == "tcp" else ModbusRtuFramer,
        address=("127.0.0.1", int(where)),
        ignore_missing_slaves=True,
        defer_start=True,
    )
    serving = asyncio.create_task(server.serve_forever())
    await server.serving
    print("ready", flush=True)
    await serving


asyncio.run(main(*sys.argv[1:]))

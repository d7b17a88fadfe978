"""A Modbus master by python3-pymodbus 3.0.

usage: master.py rtu DEVICE BAUD | tcp PORT

Reads lines "FUNCTION UNIT ADDRESS N...": functions 3 and 4 read N registers, 6
and 16 write the values that follow. Prints a line for each: the registers, "ok"
or "error".
"""
import sys

from pymodbus.client import ModbusSerialClient, ModbusTcpClient


def main(kind, where, baud="0"):
    if kind == "rtu":
        client = ModbusSerialClient(where, baudrate=int(baud), timeout=5)
    else:
        client = ModbusTcpClient("127.0.0.1", port=int(where), timeout=5)
    if not client.connect():
        sys.exit("no connection")
    for line in sys.stdin:
        function, unit, address, *values = map(int, line.split())
        if function == 3:
            answer = client.read_holding_registers(address, values[0], slave=unit)
        elif function == 4:
            answer = client.read_input_registers(address, values[0], slave=unit)
        elif function == 6:
            answer = client.write_register(address, values[0], slave=unit)
        else:
            answer = client.write_registers(address, values, slave=unit)
        if answer.isError():
            print("error")
        else:
            print("ok" if function > 4 else " ".join(map(str, answer.registers)))


main(*sys.argv[1:])

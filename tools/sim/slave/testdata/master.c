/* A Modbus master by libmodbus.
 *
 * usage: master rtu DEVICE BAUD | tcp PORT
 *
 * Reads lines "FUNCTION UNIT ADDRESS N...": functions 3 and 4 read N
 * registers, 6 and 16 write the values that follow. Prints a line for each:
 * the registers, "ok" or "error".
 */
#include <errno.h>
#include <modbus/modbus.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
	if (argc < 3)
		return 2;
	int rtu = !strcmp(argv[1], "rtu");
	modbus_t *m = rtu ? modbus_new_rtu(argv[2], atoi(argv[3]), 'N', 8, 1) : modbus_new_tcp("127.0.0.1", atoi(argv[2]));
	if (!m || modbus_set_slave(m, 1) || modbus_connect(m)) {
		fprintf(stderr, "connect: %s\n", modbus_strerror(errno));
		return 1;
	}
	modbus_set_response_timeout(m, 5, 0);
	char line[1024];
	while (fgets(line, sizeof line, stdin)) {
		int in[128], n = 0;
		for (char *word = strtok(line, " \n"); word && n < 128; word = strtok(NULL, " \n"))
			in[n++] = atoi(word);
		if (n < 4)
			return 2;
		uint16_t r[128];
		int done = -1;
		modbus_set_slave(m, in[1]);
		for (int i = 3; i < n; i++)
			r[i - 3] = in[i];
		switch (in[0]) {
		case 3: done = modbus_read_registers(m, in[2], in[3], r); break;
		case 4: done = modbus_read_input_registers(m, in[2], in[3], r); break;
		case 6: done = modbus_write_register(m, in[2], r[0]); break;
		case 16: done = modbus_write_registers(m, in[2], n - 3, r); break;
		}
		if (done < 0)
			puts("error");
		else if (in[0] > 4)
			puts("ok");
		else
			for (int i = 0; i < done; i++)
				printf("%d%c", r[i], i + 1 < done ? ' ' : '\n');
	}
	return 0;
}

"""`fastbit` in a shell, without a start of Python: a fork of a process that has imported it

The imports of a command take longer than most lessons that call it. In `with forked_command():` the first `fastbit` on
PATH hands its words, folder, environment and open files to a server, which forks. How the command starts is
for `tests/test_start.py`, and for CI's own `fastbit baseline`.
"""
import json, multiprocessing, os, signal, socket, sys, tempfile, traceback
from contextlib import contextmanager
from pathlib import Path

# -S -E: no site-packages, and no settings of the user
CLIENT = """#!{python} -SE
import json, os, socket, sys
server = socket.socket(socket.AF_UNIX)
server.connect({address!r})
call = json.dumps(dict(words=sys.argv[1:], cwd=os.getcwd(), env=dict(os.environ)))
try:
    socket.send_fds(server, [call.encode()[:1]], [0, 1, 2])
    server.sendall(call.encode()[1:])
    server.shutdown(socket.SHUT_WR)
    status = server.recv(1)
except ConnectionError: status = b''
sys.exit(status[0] if status else 128 + 9) # killed
"""


def received(client) -> tuple: # (words, folder and environment, file descriptors)
    "Read what a client sends"
    parts = []
    part, files, *_ = socket.recv_fds(client, 1, 3)
    while part:
        parts.append(part)
        part = client.recv(65536)
    return json.loads(b''.join(parts)), files


def run_command(call: dict, files: list) -> int:
    "Run the command in this process, with the files, folder and environment of the one that called it; return its status"
    for fd, file in enumerate(files): os.dup2(file, fd)
    for fd, name in ((1, 'stdout'), (2, 'stderr')): setattr(sys, name, open(fd, 'w', buffering=1, closefd=False))
    os.chdir(call['cwd'])
    os.environ.clear()
    os.environ.update(call['env'])
    sys.argv = ['fastbit', *call['words']]
    from fastbit.cli.command import main
    try: status = main()
    except SystemExit as e: status = e.code
    except BaseException:
        traceback.print_exc()
        status = 1
    for stream in (sys.stdout, sys.stderr): stream.flush()
    return status or 0


def serve(server):
    "Fork for each client, until this process is killed"
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)   # nobody waits for them
    while True:
        client, _ = server.accept()
        if os.fork() == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            server.close()
            client.sendall(bytes([run_command(*received(client))]))
            os._exit(0)
        client.close()


@contextmanager
def forked_command():
    "Put the forked `fastbit` first on PATH; what it should not import again is imported before"
    path = os.environ['PATH']
    with tempfile.TemporaryDirectory() as folder:
        address, script = f'{folder}/socket', Path(folder)/'fastbit'
        server = socket.socket(socket.AF_UNIX)
        server.bind(address)
        server.listen()
        script.write_text(CLIENT.format(python=sys.executable, address=address))
        script.chmod(0o755)
        process = multiprocessing.get_context('fork').Process(target=serve, args=(server,))
        process.start()
        server.close()
        os.environ['PATH'] = folder + os.pathsep + path
        try: yield process
        finally:
            os.environ['PATH'] = path
            process.kill()
            process.join()

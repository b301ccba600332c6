"""Run the files of a bundle in clients that nobody here wrote, and compare the numbers.

    python benchmarks/clients.py prepare RUN FOLDER     # in this project's environment
    python benchmarks/clients.py run FOLDER             # in any environment that has the clients:
        pip install numpy onnx onnxruntime openvino opencv-python-headless ncnn pnnx
        npm install --prefix FOLDER/web onnxruntime-web         # and a chromium on the PATH

`prepare` writes bundles of the student that RUN ships (float, int8, raw pixels, TensorRT's flavour,
every opset) and what ONNX Runtime computes of each file for 100 test images, exactly as the file is
written. `run` prints a table: a cell is the largest difference to that relative to the largest
value, and the images with another class, or the first line of the client's error. Every client runs
in a process of its own, so that one that crashes is a cell, too. Files of a student that segments
are run at two image sizes, one of them not square: two cells in one, unless they are the same.
"""

import argparse
import functools
import http.server
import importlib.metadata
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

IMAGES = 100
RESIZED = 8  # images at another size
SUFFIXES = (".npz", ".resized.npz")
OPSETS = (18, 19, 20, 21, 22, 23, 24, 25)
EQUAL = 1e-4  # of the largest value
HANG = 600  # seconds after which a client is given up
Array = Any


def prepare(run: Path, folder: Path) -> None:
    """Write the bundles, the files of other opsets, and inputs and outputs of each."""
    from compress.data import evaluation_batches, evenly
    from compress.model_files.artifacts import is_dense, load_student
    from compress.onnx import open_session, run_session, takes_pixels
    from compress.recipe.files import load_resolved
    from export.__main__ import main
    from export.bundle.parity import pixels_of
    from export.bundle.request import resized
    from export.stage import bundle_request

    recipe = load_resolved(run)
    method = recipe.distill.method
    label = method.label or method.name
    wanted = {"plain": [], "raw": ["--raw-pixels"], "tensorrt": ["--flavour", "tensorrt"]}
    wanted |= {f"opset-{opset}": ["--opset", str(opset)] for opset in OPSETS}
    folder.mkdir(parents=True, exist_ok=True)
    for name, options in wanted.items():
        main([str(run), "--student", label, "--out", str(folder / name), "--force", *options])
    student = load_student(run / "distill" / label)
    request = bundle_request(label, student, run, recipe, recipe.export)
    test, own = request.data.test, request.data.preprocessing
    subset = test.subset(evenly(test, IMAGES))
    images, _ = next(iter(evaluation_batches(subset, IMAGES, own, "cpu")))
    sizes = [images]
    if is_dense(student.description):
        sizes.append(next(resized(request.data, RESIZED, RESIZED))[0])
    for path in sorted(folder.glob("*/*.onnx")):
        session = open_session(path, exact=True)
        for number, batch in enumerate(sizes):
            given = pixels_of(batch, own) if takes_pixels(session) else batch.numpy()
            outputs = run_session(session, given)
            np.savez(path.with_suffix(SUFFIXES[number]), given=given, expected=outputs)


def in_onnxruntime(path: Path, given: Array) -> Array:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": given})[0]


def in_reference(path: Path, given: Array) -> Array:
    from onnx.reference import ReferenceEvaluator

    return ReferenceEvaluator(str(path)).run(None, {"images": given[:8]})[0]


def in_openvino(path: Path, given: Array, precision: str | None = "f32") -> Array:
    import openvino

    # Left alone, it computes in bfloat16 where the CPU can.
    hint = {} if precision is None else {"INFERENCE_PRECISION_HINT": precision}
    compiled = openvino.Core().compile_model(str(path), "CPU", hint)
    return compiled(given)[0]


def in_opencv(path: Path, given: Array) -> Array:
    import cv2

    network = cv2.dnn.readNetFromONNX(str(path))
    network.setInput(given)
    return network.forward()


def in_ncnn(path: Path, given: Array) -> Array:
    """pnnx converts the file for one image of a fixed size, ncnn runs it image by image."""
    import ncnn

    with tempfile.TemporaryDirectory() as name:
        copy = Path(shutil.copy(path, Path(name) / "student.onnx"))
        shape = ",".join(map(str, (1, *given.shape[1:])))
        kind = "u8" if given.dtype == np.uint8 else "f32"
        # The program in the package; its Python around it would want torch.
        program = importlib.metadata.distribution("pnnx").locate_file("pnnx/pnnx")
        command = [str(program), str(copy), f"inputshape=[{shape}]{kind}", "fp16=0"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=name)
        param = Path(name) / "student.ncnn.param"
        if not param.is_file():
            raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
        network = ncnn.Net()
        network.opt.use_fp16_storage = network.opt.use_fp16_arithmetic = False
        network.opt.use_fp16_packed = network.opt.use_bf16_storage = False
        if network.load_param(str(param)) or network.load_model(str(param.with_suffix(".bin"))):
            raise RuntimeError("ncnn cannot load what pnnx wrote")
        rows = []
        for image in given:
            extractor = network.create_extractor()
            if extractor.input("in0", ncnn.Mat(np.ascontiguousarray(image)).clone()):
                raise RuntimeError("ncnn takes no such input")
            failed, output = extractor.extract("out0")
            if failed:
                raise RuntimeError(f"ncnn's extract gives {failed}")
            rows.append(np.array(output))
        return np.stack(rows)


PAGE = """<!doctype html><script src="/web/node_modules/onnxruntime-web/dist/ort.min.js"></script>
<script>
const say = (what) => fetch("/result", {method: "POST", body: JSON.stringify(what)});
(async () => {
  ort.env.wasm.wasmPaths = "/web/node_modules/onnxruntime-web/dist/";
  ort.env.wasm.numThreads = 1;
  const given = await (await fetch("/given.json")).json();
  const session = await ort.InferenceSession.create("/model.onnx", {executionProviders: ["wasm"]});
  const kind = given.dtype === "uint8" ? Uint8Array : Float32Array;
  const feed = new ort.Tensor(given.dtype, kind.from(given.values), given.shape);
  const result = Object.values(await session.run({images: feed}))[0];
  await say({values: Array.from(result.data), shape: result.dims});
})().catch((error) => say({error: String(error)}));
</script>"""


def in_browser(path: Path, given: Array) -> Array:
    """onnxruntime-web's WebAssembly in headless Chromium, served from this machine alone."""
    few = given[:16]
    browser = next(filter(None, map(shutil.which, ("chromium-shell", "chromium", "google-chrome"))))
    answers: queue.Queue[dict[str, Any]] = queue.Queue()
    sent = {"dtype": few.dtype.name, "shape": few.shape, "values": few.flatten().tolist()}
    pages = {"/": PAGE.encode(), "/given.json": json.dumps(sent).encode()}
    pages["/model.onnx"] = path.read_bytes()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            if self.path not in pages:
                return super().do_GET()
            self.send_response(200)
            self.send_header(
                "Content-Type", "text/html" if self.path == "/" else "application/json"
            )
            self.end_headers()
            self.wfile.write(pages[self.path])

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(204)
            self.end_headers()
            answers.put(json.loads(body))

        def log_message(self, *_: object) -> None:
            pass

    serve = functools.partial(Handler, directory=str(path.parent.parent))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), serve) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/"
        flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-port=0"]
        null = subprocess.DEVNULL
        process = subprocess.Popen(
            [browser, *flags, address], stdout=null, stderr=null, start_new_session=True
        )
        try:
            answer = answers.get(timeout=HANG / 2)
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # its processes, too
            process.wait()
            server.shutdown()
    if "error" in answer:
        raise RuntimeError(answer["error"])
    return np.array(answer["values"], np.float32).reshape(answer["shape"])


CLIENTS: dict[str, tuple[str, Callable[[Path, Array], Array]]] = {
    "ONNX Runtime": ("onnxruntime", in_onnxruntime),
    "onnx.reference": ("onnx", in_reference),
    "OpenVINO": ("openvino", in_openvino),
    "OpenVINO, no hint": ("openvino", functools.partial(in_openvino, precision=None)),
    "OpenCV dnn": ("opencv-python-headless", in_opencv),
    "ncnn": ("ncnn", in_ncnn),
    "onnxruntime-web": ("", in_browser),
}


def compare(expected: Array, actual: Array) -> str:
    """The cell: equal, or by how much not."""
    expected = expected[: len(actual)]
    if actual.shape != expected.shape:
        return f"shape {actual.shape} instead of {expected.shape}"
    difference = float(np.abs(actual - expected).max() / np.abs(expected).max())
    if difference <= EQUAL:
        return "equal"
    if expected.ndim > 2:  # feature maps, logits of pixels
        return f"{difference:.2g}"
    same = int((actual.argmax(1) == expected.argmax(1)).sum())
    return f"{difference:.2g}; same class {same} of {len(actual)}"


def run_one(client: str, path: Path) -> None:
    """Print the cell of one client and file."""
    files = [file for suffix in SUFFIXES if (file := path.with_suffix(suffix)).is_file()]
    cells = []
    try:
        for file in files:
            with np.load(file) as saved:
                actual = CLIENTS[client][1](path, saved["given"])
                cells.append(compare(saved["expected"], actual))
        print(f"\n{' and '.join(dict.fromkeys(cells))}")
    except Exception as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        print(f"\nrefused: {type(error).__name__}: {lines[0][:160] if lines else ''}")


def version(folder: Path, client: str) -> str:
    if client != "onnxruntime-web":
        return importlib.metadata.version(CLIENTS[client][0])
    package = folder / "web/node_modules/onnxruntime-web/package.json"
    return str(json.loads(package.read_text())["version"])


def run_all(folder: Path, clients: list[str]) -> None:
    """Print the table of files and clients."""
    files = sorted(folder.glob("*/*.onnx"))
    titles = [f"{client} {version(folder, client)}" for client in clients]
    print(f"| file | {' | '.join(titles)} |\n|---|{'---|' * len(clients)}")
    for path in files:
        if path.parent.name != "plain" and path.name == "encoder.onnx":
            continue  # the same in every bundle but for its opset
        cells = []
        for client in clients:
            command = [sys.executable, __file__, "one", client, str(path)]
            try:
                done = subprocess.run(command, capture_output=True, text=True, timeout=HANG)
                cell = done.stdout.strip().splitlines()[-1:] if done.returncode == 0 else []
                cells.append(cell[0] if cell else f"crashed ({done.returncode})")
            except subprocess.TimeoutExpired:
                cells.append(f"no answer in {HANG} s")
        print(f"| {path.parent.name}/{path.name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(dest="command", required=True)
    first = commands.add_parser("prepare")
    first.add_argument("run", type=Path)
    first.add_argument("folder", type=Path)
    second = commands.add_parser("run")
    second.add_argument("folder", type=Path)
    second.add_argument("--clients", nargs="+", choices=CLIENTS, default=list(CLIENTS))
    third = commands.add_parser("one")
    third.add_argument("client", choices=CLIENTS)
    third.add_argument("path", type=Path)
    args = parser.parse_args()
    if args.command == "prepare":
        prepare(args.run, args.folder)
    elif args.command == "run":
        run_all(args.folder, args.clients)
    else:
        run_one(args.client, args.path)


if __name__ == "__main__":
    main()

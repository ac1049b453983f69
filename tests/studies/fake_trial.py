"""In the place of a trial, without torch: it leaves a line, a result, or fails as ``trial.json`` says."""

import json
import signal
import sys
import time
from pathlib import Path

if __name__ == "__main__":
    directory = Path(sys.argv[1])
    request = json.loads((directory / "trial.json").read_text())
    with (directory / "runs.txt").open("a") as file:
        file.write("run\n")
    if request.get("polite"):  # writes its checkpoint when it is asked to stop, which takes a while

        def stop(*_):
            time.sleep(1)
            (directory / "checkpoint.txt").touch()
            sys.exit("stopped")

        signal.signal(signal.SIGTERM, stop)
        (directory / "ready.txt").touch()
    time.sleep(request.get("sleep", 0))
    runs = len((directory / "runs.txt").read_text().splitlines())
    if runs <= request.get("fails", 0):
        print("a long story")
        sys.exit("out of\nluck")
    (directory / "result.json").write_text(json.dumps({"value": 2 * request["value"]}))

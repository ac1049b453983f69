"""As if torchmetrics were not installed, in the processes that tests start: Lightning's Fabric imports the whole of it
to ask for its version, 1.5 s each time. It comes with pytorch-lightning, which only a benchmark's other side needs."""

raise ImportError("left out of processes that tests start")

"""Entry point of `fastmim VERB`: each verb is a module in `commands`; errors become one line."""

import difflib
import importlib
import sys
import traceback
from collections.abc import Callable, Sequence

from fastmim._version import __version__
from fastmim.errors import FastmimError, Interrupted, UsageError, printable
from fastmim.system.threads import wait_briefly
from fastmim.train.signals import interruptible

VERBS = {
    "pretrain": "pre-train a backbone on unlabelled images",
    "finetune": "fine-tune for classification",
    "detect": "train a detector of objects on a backbone",
    "segment": "train a model for semantic segmentation on a backbone",
    "predict": "write the predictions of a trained model for images",
    "payoff": "compare pre-training with training from scratch",
    "sweep": "search base learning rate and layer decay",
    "probe": "classify frozen features: linear, nearest neighbours, attentive",
    "embed": "write features of images to a parquet file",
    "export": "export to timm, torchvision, Hugging Face or ONNX; import released weights",
    "backbones": "list backbones, and the image sizes that they support",
    "pack": "write a resized copy of a data set, which training reads several times as fast",
    "bench": "measure speed and memory on this machine",
    "stats": "measure the mean and standard deviation of each channel of a data set",
    "recipes": "list the recipes, or print one as YAML",
}

USAGE = """usage: fastmim VERB [options]

Self-supervised pre-training of any vision backbone, by masked image modelling
on low-resolution images.

verbs:
{verbs}

options:
  -h, --help     this text; `fastmim VERB --help` or `fastmim help VERB` explains a verb
  --version      the version
  --debug        after any verb: show the traceback of an error

examples:
  fastmim pretrain --data demo:photos --out runs/demo --steps 100
  fastmim pretrain --data photos/ --out runs/swin --model swin_tiny_patch4_window7_224
  fastmim pretrain --out runs/swin --resume
  fastmim finetune --encoder runs/demo --data labelled/ --out runs/classes

exit codes: 0 done, 1 a run failed, 2 wrong usage, 130 and 143 stopped by Ctrl-C
or SIGTERM (a checkpoint is written: resume with --resume), 128 + N by signal N
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    wait_briefly()
    arguments = [argument for argument in arguments if argument != "--debug"]
    try:
        with interruptible():
            return _dispatch(arguments)
    except FastmimError as error:
        return _fail(str(error), error.exit_code, debug)
    except Interrupted as error:
        return _fail(str(error), 128 + error.number, debug)
    except KeyboardInterrupt:
        return _fail("interrupted", 130, debug)
    except BrokenPipeError:
        return 1
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        message = f"unexpected {type(error).__name__}: {lines[0]} (--debug shows where)"
        return _fail(message, 1, debug)


def _dispatch(arguments: list[str]) -> int:
    if arguments[:1] == ["help"] and len(arguments) > 1:
        arguments = [arguments[1], "--help"]
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        width = max(map(len, VERBS)) + 2
        print(USAGE.format(verbs="\n".join(f"  {verb:<{width}} {what}" for verb, what in VERBS.items())))
        return 0 if arguments else 2
    if arguments[0] in ("--version", "-V"):
        print(f"fastmim {__version__}")
        return 0
    verb = arguments[0]
    if verb.startswith("-"):
        raise UsageError(f"a verb comes first, as in `fastmim pretrain {verb}`, of: {', '.join(VERBS)}")
    if verb not in VERBS:
        close = difflib.get_close_matches(verb, VERBS, n=1)
        meant = f"did you mean {close[0]}?" if close else f"there are: {', '.join(VERBS)}"
        raise UsageError(f"there is no verb {verb!r}; {meant}")
    run: Callable[[list[str]], int] = importlib.import_module(f"fastmim.cli.commands.{verb}").run
    return run(arguments[1:])


def _fail(message: str, code: int, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"fastmim: {printable(' '.join(message.split()))}", file=sys.stderr)
    return code

"""Average the weights of models, each trained further from another: better than any one (Izmailov et al. 2018, arXiv 1803.05407).

python -m tools.average_models OUT.nemo MODEL.nemo MODEL.nemo ...
"""

import argparse
from pathlib import Path

import torch


def main() -> None:
    from nemo.collections.asr.models import ASRModel

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("models", type=Path, nargs="+")
    arguments = parser.parse_args()
    models = [ASRModel.restore_from(str(path), map_location="cpu") for path in arguments.models]
    states = [model.state_dict() for model in models]
    mean = {
        name: torch.stack([state[name] for state in states]).mean(0) if value.is_floating_point() else value
        for name, value in states[0].items()
    }
    models[0].load_state_dict(mean)
    models[0].save_to(str(arguments.out))


if __name__ == "__main__":
    main()

"""Print constraints that turn every lower end of the dependencies into the version to install."""

import sys
import tomllib

with open(sys.argv[1], "rb") as file:
    for requirement in tomllib.load(file)["project"]["dependencies"]:
        print(requirement.replace(">=", "==") + ".*")

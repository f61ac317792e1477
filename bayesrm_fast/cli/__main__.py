"""`python -m bayesrm_fast.cli`, the command `bayesrm` where its script is not on the path."""

from bayesrm_fast.cli.main import main

if __name__ == "__main__":
    main()

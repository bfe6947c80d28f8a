"""Every field there is, with its default. The other configs start from here and change a few.

Fields whose default is a type in `placeholder(...)` are unset: the comment says what then holds.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.seed = 0  # of initialisation, and of data.seed and data.augmentation_seed unless given
    config.init_from = placeholder(str)  # workdir of a run to start from, the head anew if need be

    config.model = model = ConfigDict()
    model.name = "repvgg_a0"  # one of repvgg_jax.list_models()
    # The train-time block, the model's own unless given: repvgg, plain (conv and BatchNorm alone),
    # acb, dbb, orepa, mobileone, qarepvgg, dirac, doconv, expandnet, ... (docs/results/blocks.md).
    model.block = placeholder(str)
    model.num_classes = 1000
    model.depths = placeholder(tuple)  # blocks a stage, the stem being the first; the model's own
    model.widths = placeholder(tuple)  # channels a stage; the model's own
    model.strides = placeholder(tuple)  # of each stage's first block; 2 everywhere
    model.groups = placeholder(int)  # of every second layer; the model's own
    model.grouped_layers = placeholder(tuple)  # other layers for them, the stem being 0
    model.branches = placeholder(tuple)  # some of ("kxk", "1x1", "identity"); all
    model.copies = placeholder(int)  # of the kxk branch of block mobileone; 4
    # How block repvgg or plain starts: lecun, he, timm, or default, which is PyTorch's. For
    # deep_plain: delta_orthogonal (its own), he, default.
    model.initializer = placeholder(str)
    model.depth = placeholder(int)  # these three of deep_plain: its layers; 1000
    model.width = placeholder(int)  # their channels; 32
    model.activation = placeholder(str)  # tanh (its own), relu, leaky_relu
    # Images, following each other in the batch, that a BatchNorm's statistics are taken over in
    # training; the whole batch over all devices unless given. The paper's is 32, a GPU's share.
    model.bn_group_size = placeholder(int)
    # What a block keeps for its gradient, the rest being computed again to save memory: "nothing",
    # "convolutions" (not what BatchNorms make of them); everything unless given.
    model.remat = placeholder(str)
    # How training computes RepVGG's 1x1 and identity: "moments" (both from the input's mean and
    # covariance), "batch" (each by itself), or whichever is faster. What computes convolutions:
    # "xla", "winograd", "onednn" (CPU; extra `cpu`), or the last where it is installed.
    # Rounding apart, neither changes anything.
    model.branch_statistics = placeholder(str)
    model.conv_algorithm = placeholder(str)
    model.frozen = placeholder(tuple)  # expressions of blocks that don't train: ("stage[0-2]_.*",)
    model.dtype = "float32"  # compute type; parameters and statistics are always float32

    config.data = data = ConfigDict()
    data.source = "tfds"  # tfds (prepared as array_record), folder (of class folders), digits
    data.name = "imagenet2012"  # of the TFDS set, `name`, `name/config` or `name:version`
    data.data_dir = placeholder(str)  # where it lies; TFDS's own default, ~/tensorflow_datasets
    data.manual_dir = placeholder(str)  # --mode=prepare: of archives downloaded by hand (ImageNet)
    data.image_size = 224  # pixels, of the square that the net sees
    data.augmentation = "resized_crop"  # resized_crop and flip, pad_crop (for small images), none
    data.resize = 256  # evaluation: the shorter side, before the centre crop (resized_crop)
    data.padding = 4  # training: zeros around the image before its crop (pad_crop)
    data.flip = True  # training: mirror half of the images
    data.eval_image_size = placeholder(int)  # of evaluation; image_size unless given
    # Training, after crop and flip: "none", "autoaugment" (found on ImageNet; as torchvision's, but
    # filled with grey), "autoaugment_cifar10", "randaugment" (as timm's), "raug15" (RepVGGplus').
    data.policy = "none"
    # Of randaugment, which with these three is timm's "rand-m9-n2-mstd0.5-inc1": of the operations
    # drawn each is applied with probability 1/2, at a magnitude kept within 0 and 10.
    data.policy_operations = 2
    data.policy_magnitude = 9.0  # from 0 to 10; 15, as some recipes have it, is 10 in timm as well
    data.policy_std = 0.5  # of the magnitude
    data.erasing = 0.0  # training: probability of a rectangle of noise
    data.mean = (0.485, 0.456, 0.406)  # of [0, 1] RGB, subtracted on the device
    data.std = (0.229, 0.224, 0.225)
    data.skip_corrupt = False  # count and skip images that cannot be decoded, or stop at the first
    data.workers = 4  # threads that decode, a process
    data.seed = placeholder(int)  # of the order of the images; config.seed
    data.augmentation_seed = placeholder(int)  # of crops, policies and mixing; config.seed

    config.mesh = mesh = ConfigDict()  # of all devices; -1 is what the other leaves
    mesh.data = -1  # batches are split over both axes
    mesh.fsdp = 1  # parameters and the optimizer's state are split over this one
    mesh.min_size = 2**16  # numbers in an array, below which it is copied rather than split

    config.train = train = ConfigDict()
    train.epochs = 120.0
    train.steps = placeholder(int)  # in place of epochs
    train.batch_size = 256  # over all devices, as is evaluation's
    train.eval_batch_size = 256
    train.accumulate = 1  # microbatches that a batch is taken in, to save memory
    train.mixup = 0.0  # (alpha of the Beta distribution; 0 for none)
    train.cutmix = 0.0  # (alpha of the Beta distribution; 0 for none)
    train.deterministic = False  # repeat bit for bit on GPUs too, which costs speed there
    train.deadline = placeholder(float)  # seconds from the start; the run saves and stops in time
    train.eval_every = placeholder(int)  # steps; once an epoch
    train.checkpoint_every = 1000  # steps; one is also written after each evaluation
    train.keep = 2  # latest checkpoints; the one of the best top-1 is kept besides
    train.log_every = 50  # steps

    config.optim = optim = ConfigDict()
    optim.learning_rate = 0.1  # for 256 images a step, scaled by train.batch_size / 256
    optim.warmup_epochs = 0.0  # rising from 0; then half a cosine to 0, a value every step
    optim.momentum = 0.9
    optim.nesterov = False
    optim.weight_decay = 1e-4
    # Kernels decay, and the identity BatchNorm's scale, as in the released code (whose name rule
    # spares "bn" and "bias" and misses that one). The first expression that matches wins.
    optim.decay_rules = ((r".*kernel", 1.0), (r".*/bn0/scale", 1.0), (r".*/branch_scales", 1.0))
    # The released code's L2 of RepVGG's blocks in place of kernels' decay: the 1x1 and the tap
    # that it is added to decay as the tap that they fuse to.
    optim.custom_l2 = placeholder(bool)
    optim.bias_rate_factor = 1.0  # the learning rate of biases over that of the rest
    optim.rate_rules = ()  # more such factors, matched first: ((r"head/.*", 10.0),)
    optim.ema_decay = 0.0  # of the average that is evaluated and fused; 0 for none
    optim.clip_norm = placeholder(float)  # of the gradient over all parameters; none
    optim.max_norm = placeholder(float)  # of every filter, held after each step; none
    optim.repoptimizer_from = placeholder(str)  # workdir of a csla run, for RepOptimizer's scales
    optim.label_smoothing = 0.0
    optim.auxiliary_weight = 0.1  # of the loss of each auxiliary head (repvgg_plus_l2pse has three)

    config.bench = bench = ConfigDict()  # --mode=bench
    bench.batch_sizes = (1, 8, 32, 128, 256)
    bench.seconds = 10.0  # of one run, from which larger batches are left out

    config.fuse = fuse = ConfigDict()
    fuse.verify_images = 256  # evaluation images that the two forms are compared on
    fuse.tolerance = 1e-3  # relative error of a block or of the logits from which fusing is refused
    return config

# What the project can do, in small: called by `make demo`, with the folder for the results.
set -e
demo=$1
cpu="--use_gpu false"
small="--batchSize 4 --manualSeed 1 --workers 1 --overwrite $cpu"
pairs="--data_path $demo/pairs/rain --gt_path $demo/pairs/norain"
test="--data_path $demo/test/rain --gt_path $demo/test/norain $cpu"
rain="python for_syn/generate_rain.py --overwrite $cpu"

echo "== 1/6 photos of scikit-image (no download)"
python -m common.data.demo --out $demo/photos
photos=$demo/photos/test/norain

echo "== 2/6 rain of the generator that comes with the project: pairs for training, pairs to test on, and its knobs"
$rain --data_path $demo/photos/train/norain --save_path $demo/pairs
$rain --data_path $photos --save_path $demo/test --seed 1
$rain --data_path $photos --save_path $demo/angle --angle 35
$rain --data_path $photos --save_path $demo/dense --density 0.4 --brightness 0.15
$rain --data_path $photos --save_path $demo/thick --thickness 4 --density 0.1

echo "== 3/6 its rain codes: from one rain to another, and dimension by dimension"
python for_syn/test_interpolation.py $test --netED default --manualSeed 1 --save_patch $demo/latent/patch \
  --save_inputfake $demo/latent/input_fake --save_rainfake $demo/latent/rain_fake
rm -f $demo/latent/seed10/*.gif
python for_syn/test_disentanglement.py --netED default --manualSeed 10 --gif --save_fake $demo/latent $cpu

echo "== 4/6 removing rain, with the derainer that comes with the project"
python for_syn/test_syn_aug.py $test --model_dir default --save_path $demo/derained
python -m common.evaluation.metrics --pred $demo/test/rain $demo/derained --gt $demo/test/norain \
  --sheet $demo/comparison.png --quiet

echo "== 5/6 both steps of the paper, a few steps each, to show that they run: joint training, started from that generator,"
python for_syn/train_syn_joint.py $pairs $small --init_ED default --stage 2 --niter 1 --iters_per_epoch 40 \
  --milestone 1 --model_dir $demo/models --log_dir $demo/logs
echo "   and augmented training (A+): a derainer learns from pairs, and from fresh rain of the generator in every step"
python for_syn/train_syn_aug.py $pairs $small --netED default --recurrent_iter 2 --niter 1 --iters_per_epoch 20 \
  --model_dir $demo/aug_models --log_dir $demo/aug_logs
python for_syn/test_disentanglement.py --netED $demo/models/ED_state_1.pt --figure generated --save_fake $demo/joint $cpu

echo "== 6/6 all pictures on one page"
python -m common.data.demo --out ${demo}_results \
  --show $demo/test/contact_sheet.jpg "Rain of the generator that comes with the project, on photos that it never saw." \
  $demo/angle/contact_sheet.jpg "One knob: --angle 35." \
  $demo/dense/contact_sheet.jpg "Two knobs: --density 0.4 --brightness 0.15." \
  $demo/thick/contact_sheet.jpg "Two knobs: --thickness 4 --density 0.1." \
  $demo/latent/rain_fake/interpolation.png "From the rain of one photo (w = 0) to that of another (w = 1): the rain, \
brightened, and both photos with it." \
  $demo/latent/seed10/sheet.png "The dimensions of the rain code that change the rain most." \
  "$(ls $demo/latent/seed10/dim*.gif | head -n 1)" "One of them as an animation." \
  $demo/comparison.png "Removing rain: rainy, derained by the derainer that comes with the project, clean." \
  $demo/joint/generated.png "Rain after 40 steps of joint training that started from the generator: still rain."
